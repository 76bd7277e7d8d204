"""Networks: any timm backbone with a head, their names, files and weights."""
