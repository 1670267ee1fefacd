"""The zoo: every model of timm, torchvision and transformers, captured in worker processes."""
