"""What a bundle's uncertainty is made from: frames that its student was trained on."""
