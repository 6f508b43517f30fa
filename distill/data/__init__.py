"""Images: data sets by name, their splits, augmentation, and batches on the device."""
