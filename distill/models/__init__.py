"""Networks. Importing this package registers the small networks and the cosine head in timm.

- `factory`: build and load networks.
- `weight_files`, `starting_weights`, `torchvision_weights`: given weights of any form.
- `class_names`: match the classes of a network with those of the images.
- `heads`, `foreign`: the last layer of any network, and networks that are not timm's.
- `small_networks`: the classes of the small networks; `small_registry`: their names in timm.
- `cosine_head`: a head whose logits are scaled cosines, for any timm network.
- `hooks`: features, templates, feature maps and weights of any network.
"""

from distill.models import cosine_head as cosine_head
from distill.models import small_registry as small_registry
