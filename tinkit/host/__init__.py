"""What runs on the workstation: torch, timm, onnx. Needs `pip install "tinkit[host,cpu]"`."""
