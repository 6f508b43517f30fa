"""Images: data sets by name, their splits, augmentation, and batches on the device.

In reading order:

- `datasets`: the table of data sets. `builtin_datasets` and `stored_datasets` open them, and
  `stored_datasets` uses `class_folders`, `shards`, `hf_datasets` and `timm_datasets`.
- `stored_files`, `archives`, `listing`, `split_folders`: files, and what is a split and a class.
- `content_index`: digests of files, by which a data set is known.
- `image_dataset`: the type of every opened data set. `decoding` and `workers` decode its images.
- `splits`: the training, validation and test split of a data set.
- `augment`: views of a batch of images, mixup, cutmix and normalisation.
- `loaders`: batches of an epoch, on the device.
"""
