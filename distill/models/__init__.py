"""Networks: timm's, and the paper's small ones, which importing this registers beside them."""

from distill.models import small  # noqa: F401
