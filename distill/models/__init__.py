"""Networks: timm's, and the small ones and a cosine head, which importing this registers beside them."""

from distill.models import heads, small  # noqa: F401
