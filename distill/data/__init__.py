"""ImageDataset: where they come from (sources), what a network is shown of them (views), in batches (loaders)."""
