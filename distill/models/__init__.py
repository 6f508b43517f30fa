"""Networks: timm's, and the papers' small ones, which importing this package registers in timm."""

from distill.models import cosine_head as cosine_head
from distill.models import small as small
