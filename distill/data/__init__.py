"""Images: data sets by name, their splits, augmentation, and batches on the device.

In reading order:

- `datasets`: the table of data sets. `builtin_datasets` and `stored_datasets` open them, and
  `stored_datasets` uses `folders`, `shards` and `timm_datasets`.
- `image_dataset`: the type of every opened data set. `decoding` and `workers` decode its images.
- `splits`: the training, validation and test split of a data set.
- `augment`: views of a batch of images, mixup, cutmix and normalisation.
- `loaders`: batches of an epoch, on the device.
"""
