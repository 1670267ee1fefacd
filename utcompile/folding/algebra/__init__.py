"""The algebra that folds share: maps of channels and how they travel, layers that take them, chains of layers."""
