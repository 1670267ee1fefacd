"""What tests share: models, modules and training steps."""
