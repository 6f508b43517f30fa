"""Networks: timm's, and the paper's small ones registered beside them."""
