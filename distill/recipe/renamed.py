"""New names of renamed recipe keys and values, for helpful messages about old recipes."""

# (name of the model that checks the mapping, old key): new key. The model of a loss term has the
# name of the term.
RENAMED_KEYS = {
    ("Data", "store"): "logit_cache",
    ("Data", "store_limit"): "logit_cache_gb",
    ("Train", "spread"): "parallelism",
    ("Analysis", "attacked"): "num_attacked",
    ("Analysis", "linf"): "eps_linf",
    ("Analysis", "l2"): "eps_l2",
    ("Analysis", "draws"): "num_views",
    ("cross_entropy", "over"): "smooth_over",
}

# (new key, old value): new value.
RENAMED_VALUES = {
    ("parallelism", "data"): "batches",
    ("smooth_over", "others"): "wrong",
}


def renamed_value(key: str, value: object) -> str | None:
    """Return the new name of a key's value; None if the value has not been renamed."""
    if not isinstance(value, str):
        return None
    return RENAMED_VALUES.get((key, value))


def renamed_key_message(old: str, new: str, value: object) -> str:
    """Return a message for a key with an old name.

    Args:
        old: the key as written.
        new: its current name.
        value: the value as written, which may have a new name, too.
    """
    message = f"'{old}' is now named '{new}'"
    new_value = renamed_value(new, value)
    if new_value is not None:
        message += f", and its value '{value}' is now named '{new_value}'"
    return message
