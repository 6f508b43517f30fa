"""The metrics of one run on one split, as `results.json` has them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metrics:
    """Every metric of one run on one split.

    Fractions are in [0, 1], losses and divergences in nats. None where a metric does not apply.

    Attributes:
        top1: accuracy.
        top5: top-5 accuracy, for more than 5 classes.
        errors: number of misclassified images.
        count: number of images.
        nll: mean cross-entropy with the labels.
        brier: Brier score.
        ece: expected calibration error with 15 bins of equal width.
        ece_equal_mass: the same with 15 bins of equally many images.
        ece_classwise: the same for each class's probability, averaged over classes.
        fitted_temperature: divides the logits; fitted on the validation split, or 1 if no other is
            reliably better there.
        ece_scaled: `ece` after division by `fitted_temperature`.
        nll_scaled: `nll` after division by `fitted_temperature`.
        logit_gap: mean of ``z_y - z_k`` over images and wrong classes k.
        logit_gap_sd: standard deviation of the same.
        stability: 1 minus the variance of the probabilities within classes (Shen et al. 2021).
        effective_smoothing: γ, the label smoothing that probabilities amount to: those of its
            teacher at the temperature of the loss; without a teacher its own at temperature 1.
        agreement: share of images on which student and teacher predict the same class.
        kl_to_teacher: mean ``KL(p_teacher ‖ p_student)`` at temperature 1.
        agreement_control: `agreement` with a teacher of another seed, which the student never saw.
        kl_control: `kl_to_teacher` for that same teacher.
        examples: images of each class that the numbers on features below come from.
        within_between: variance within classes over variance between class means, of features.
        within_between_templates: the same in the space spanned by the templates' differences.
        class_separation: R² of cosine distances (Kornblith et al. 2021).
        nc1: ``tr(Σ_W Σ_B⁺) / K`` (Papyan et al. 2020), 0 at full collapse.
        wrong_template_spread: standard deviation over mean of the distances to wrong templates.
        num_attacked: images that were attacked (test split only, like all that follow).
        unattacked: accuracy on these images before the attack.
        fgsm: accuracy under FGSM.
        pgd_linf: accuracy under L∞ PGD on the cross-entropy.
        margin_linf: accuracy under L∞ PGD on the margin of the logits.
        pgd_l2: accuracy under L2 PGD.
        transfer: accuracy under L∞ PGD on another network.
        worst_linf: share of images that withstand every L∞ attack.
        zero_gradient: share of images whose gradient is exactly 0.
    """

    top1: float | None = None
    top5: float | None = None
    errors: int | None = None
    count: int | None = None
    nll: float | None = None
    brier: float | None = None
    ece: float | None = None
    fitted_temperature: float | None = None
    ece_scaled: float | None = None
    ece_equal_mass: float | None = None
    ece_classwise: float | None = None
    nll_scaled: float | None = None
    logit_gap: float | None = None
    logit_gap_sd: float | None = None
    stability: float | None = None
    effective_smoothing: float | None = None
    agreement: float | None = None
    kl_to_teacher: float | None = None
    agreement_control: float | None = None
    kl_control: float | None = None
    examples: float | None = None
    within_between: float | None = None
    within_between_templates: float | None = None
    class_separation: float | None = None
    nc1: float | None = None
    wrong_template_spread: float | None = None
    num_attacked: int | None = None
    unattacked: float | None = None
    fgsm: float | None = None
    pgd_linf: float | None = None
    margin_linf: float | None = None
    pgd_l2: float | None = None
    transfer: float | None = None
    worst_linf: float | None = None
    zero_gradient: float | None = None
