"""The keys of `analysis`: how trained networks are analysed."""

from pydantic import Field

from distill.recipe.strict import Name, Strict


class Analysis(Strict):
    """How trained networks are analysed. No key changes a trained weight."""

    budget: float = Field(
        0.25,
        ge=0,
        description="Maximum cost of the analysis as a fraction of the cost of training, both "
        "counted in forward passes. The defaults of `examples`, `num_views` and `num_attacked` are "
        "lowered until the analysis fits; values that the recipe sets are kept. The report says "
        "what was lowered.",
    )
    examples: int = Field(
        100,
        ge=0,
        description="Number of images per class in the analysis of penultimate features (at most "
        "10,000 in total). 0 skips this analysis. The default is lowered to fit `budget`.",
    )
    classes: list[Name] | None = Field(
        None,
        min_length=3,
        max_length=3,
        description="Names of the three classes in the feature plots. By default there are two "
        "plots. One shows the three classes that are confused most. The other shows the two that "
        "are confused most, and the class that is confused least with them.",
    )
    num_attacked: int = Field(
        500,
        ge=0,
        description="Number of test images to attack. 0 skips the attacks. The default is lowered "
        "to fit `budget`.",
    )
    eps_linf: float = Field(
        8 / 255,
        gt=0,
        le=1,
        description="Radius ε of L∞ attacks: the largest change of a pixel value, for pixels in "
        "[0, 1].",
    )
    eps_l2: float = Field(
        0.5,
        gt=0,
        description="Radius ε of L2 attacks: the largest Euclidean norm of the change of an image, "
        "for pixels in [0, 1].",
    )
    steps: int = Field(
        20, ge=1, description="Number of projected gradient (PGD) steps in an attack."
    )
    num_views: int = Field(
        40,
        ge=0,
        description="Number of views per image in the estimate of mutual information between an "
        "image and the network's output on its views. The estimate is about 1 / (2 num_views) nats "
        "too low. 0 skips this analysis. The default is lowered to fit `budget`.",
    )
    pair: list[Name] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="Names of the two classes in the analysis of mutual information. The default "
        "is one of the two classes confused most, and the class confused least with those two.",
    )
