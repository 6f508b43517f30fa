"""Networks of timm, and small networks of papers, which this package registers in timm."""

from distill.models import cosine_head as cosine_head
from distill.models import small as small
