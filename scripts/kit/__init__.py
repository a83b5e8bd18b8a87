"""The kit that installs what a GPU machine without a network lacks."""
