"""What is done to images before a net sees them: normalisation, augmentation, mixing."""
