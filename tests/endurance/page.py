from pathlib import Path
def figures_text(output: Path, brief: bool = False) -> str: return ""
def write_page(document: Path, output: Path) -> None: pass
