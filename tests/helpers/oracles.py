"""Reference definitions in plain Python: slow, obvious, and independent of torch.

They take lists of floats and return a float, for one example unless stated otherwise.
"""

import math

# ---- shared helpers ----


def log_sum_exp(values):
    """log sum_j exp(v_j), the max subtracted first."""
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def log_softmax(logits, temperature=1.0):
    """log p_j = z_j/T - log sum_k exp(z_k/T)."""
    scaled = [v / temperature for v in logits]
    total = log_sum_exp(scaled)
    return [v - total for v in scaled]


def softmax(logits, temperature=1.0):
    """p_j = exp(z_j/T) / sum_k exp(z_k/T)."""
    return [math.exp(v) for v in log_softmax(logits, temperature)]


def kl(log_q, log_p):
    """KL(q || p) = sum_j q_j (log q_j - log p_j), both given as log-probabilities."""
    return sum(math.exp(a) * (a - b) for a, b in zip(log_q, log_p, strict=True))


def mean(values):
    """sum / n."""
    return sum(values) / len(values)


def dot(a, b):
    """sum_i a_i b_i."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def length(a):
    """sqrt sum_i a_i^2."""
    return math.sqrt(sum(x * x for x in a))


def huber(x):
    """x^2/2 if |x| < 1 else |x| - 1/2."""
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def pearson(a, b):
    """sum (a-mean a)(b-mean b) / (|a-mean a| |b-mean b|).

    A length below 1e-8 counts as 1e-8, as in the code of DIST's authors.
    """
    da = [x - mean(a) for x in a]
    db = [x - mean(b) for x in b]
    return dot(da, db) / (max(length(da), 1e-8) * max(length(db), 1e-8))


def without(values, y):
    """The values of every class but y, in order."""
    return [v for j, v in enumerate(values) if j != y]


def is_soft(y):
    """Whether y is a soft label (K floats) rather than a class number."""
    return isinstance(y, (list, tuple))


def target_of(y, K, smoothing, smooth_over="all", prior=None):
    """q: smoothed(y) for a class number; sum_c soft[c] smoothed(c) for a soft label."""
    if not is_soft(y):
        return smoothed(y, K, smoothing, smooth_over, prior)
    q = [0.0] * K
    for c in range(K):
        row = smoothed(c, K, smoothing, smooth_over, prior)
        for j in range(K):
            q[j] += y[c] * row[j]
    return q


# ---- labels and plain losses ----


def smoothed(y, K, smoothing, smooth_over="all", prior=None):
    """The target q of a class.

    all: (1-s)[j==y] + s/K; wrong: 1-s at y, s/(K-1) elsewhere; prior: (1-s)[j==y] + s prior_j.
    """
    q = []
    for j in range(K):
        hit = 1.0 if j == y else 0.0
        if prior is not None:
            q.append((1 - smoothing) * hit + smoothing * prior[j])
        elif smooth_over == "all":
            q.append((1 - smoothing) * hit + smoothing / K)
        elif smooth_over == "wrong":
            q.append(1 - smoothing if j == y else smoothing / (K - 1))
        else:
            raise ValueError(smooth_over)
    return q


def cross_entropy(
    z, y, smoothing=0, smooth_over="all", prior=None, class_weights=None, subtract_entropy=False
):
    """w_y (sum_j -q_j log p_j - H(q) if subtract_entropy).

    y is a class, or K floats; then w = sum_c y_c w_c.
    """
    K = len(z)
    q = target_of(y, K, smoothing, smooth_over, prior)
    log_p = log_softmax(z)
    loss = 0.0
    for j in range(K):
        loss -= q[j] * log_p[j]
    if subtract_entropy:
        for j in range(K):
            if q[j] > 0:
                loss += q[j] * math.log(q[j])
    if class_weights is not None:
        loss *= dot(y, class_weights) if is_soft(y) else class_weights[y]
    return loss


def focal(z, y, focus):
    """(1-p_y)^focus * -log p_y, with 1-p_y summed from the other classes."""
    return sum(without(softmax(z), y)) ** focus * -log_softmax(z)[y]


def poly1(z, y, epsilon, smoothing=0):
    """CE(q, p) + epsilon (1 - sum_j q_j p_j), q smoothed over all classes."""
    q = target_of(y, len(z), smoothing)
    return cross_entropy(z, y, smoothing) + epsilon * (1 - dot(q, softmax(z)))


def confidence_penalty(z):
    """log K - H(p)."""
    entropy = -dot(softmax(z), log_softmax(z))
    return math.log(len(z)) - entropy


def max_sup(z):
    """max(z) - mean(z)."""
    return max(z) - mean(z)


def mbls(z, margin, over_classes="mean"):
    """mean (or sum) over all K of max(0, max(z) - z_k - margin)."""
    total = sum(max(0.0, max(z) - v - margin) for v in z)
    return total / len(z) if over_classes == "mean" else total


def zipf(z, y, power=1):
    """KL(q || softmax of the non-target logits).

    q_r = r^-power / sum_r r^-power by descending logit, r = 1..K-1.
    """
    ordered = sorted(without(z, y), reverse=True)
    mass = [r**-power for r in range(1, len(ordered) + 1)]
    log_q = [math.log(m / sum(mass)) for m in mass]
    return kl(log_q, log_softmax(ordered))


def sparse_softmax(z, y, k):
    """log sum over the k largest logits of exp(z) - z_y."""
    return log_sum_exp(sorted(z, reverse=True)[:k]) - z[y]


def sparse_probabilities(z, k):
    """softmax over the k largest logits, 0 elsewhere."""
    kept = sorted(range(len(z)), key=lambda j: z[j], reverse=True)[:k]
    p = [0.0] * len(z)
    for j, value in zip(kept, softmax([z[j] for j in kept]), strict=True):
        p[j] = value
    return p


def online_targets(batches, K):
    """[c][k]: mean of softmax(z)_k over the (z, y) with y = argmax z = c; 1/K if there is none."""
    targets = []
    for c in range(K):
        rows = [softmax(z) for z, y in batches if y == c and z.index(max(z)) == c]
        targets.append([mean([row[k] for row in rows]) if rows else 1 / K for k in range(K)])
    return targets


def online_smoothing(z, y, targets):
    """-sum_k targets[y][k] log p_k."""
    return -dot(targets[y], log_softmax(z))


# ---- margins ----


def with_target(z, y, value):
    """z with z_y replaced."""
    return [value if j == y else v for j, v in enumerate(z)]


def sm_softmax(z, y, margin, smoothing=0):
    """CE with z_y -> z_y - margin."""
    return cross_entropy(with_target(z, y, z[y] - margin), y, smoothing)


def am_softmax(z, y, margin, scale, smoothing=0):
    """CE with z_y -> z_y - scale*margin."""
    return cross_entropy(with_target(z, y, z[y] - scale * margin), y, smoothing)


def arcface(z, y, margin, scale, smoothing=0):
    """CE with another z_y.

    scale cos(theta+margin) if theta+margin <= pi else scale (cos theta - margin sin margin).
    """
    cosine = min(1.0, max(-1.0, z[y] / scale))
    theta = math.acos(cosine)
    if theta + margin <= math.pi:
        value = scale * math.cos(theta + margin)
    else:
        value = scale * (math.cos(theta) - margin * math.sin(margin))
    return cross_entropy(with_target(z, y, value), y, smoothing)


def l_softmax(f, W, b, y, margin, smoothing=0, share=1):
    """CE of z = Wf+b with z_y += share |W_y||f| (psi - cos t) at the angle t.

    psi = (-1)^k cos(m t) - 2k with k = floor(m t/pi).
    """
    z = [dot(row, f) + (b[j] if b is not None else 0.0) for j, row in enumerate(W)]
    norms = length(W[y]) * length(f)
    if norms > 0:
        cosine = min(1.0, max(-1.0, dot(W[y], f) / norms))
        theta = math.acos(cosine)
        k = min(math.floor(margin * theta / math.pi), margin - 1)
        psi = (-1) ** k * math.cos(margin * theta) - 2 * k
        z[y] = z[y] + share * norms * (psi - cosine)
    return cross_entropy(z, y, smoothing)


def a_softmax(f, W, y, margin, smoothing=0, share=1):
    """l_softmax with every row W_j / |W_j| and no bias."""
    unit = [[w / length(row) for w in row] for row in W]
    return l_softmax(f, unit, None, y, margin, smoothing, share)


# ---- distillation from logits ----


def standardised(values):
    """(x - mean) / std, std with n-1."""
    m = mean(values)
    std = math.sqrt(sum((v - m) ** 2 for v in values) / (len(values) - 1))
    return [(v - m) / std for v in values]


def kd(z, t, temperature, student_temperature=None, standardise=False, t_squared=True):
    """KL(softmax(t/T) || softmax(z/S)), times S^2 if t_squared; S = student_temperature or T."""
    S = student_temperature or temperature
    if standardise:
        z, t = standardised(z), standardised(t)
    loss = kl(log_softmax(t, temperature), log_softmax(z, S))
    return loss * S**2 if t_squared else loss


def kd_schedule(start, final, progress):
    """start + (final-start) progress."""
    return start + (final - start) * progress


def logit_mse(z, t, over_classes="sum", centre=False):
    """1/2 sum (or mean) of (z-t)^2; centre: z - mean(z) and t - mean(t) first."""
    if centre:
        z, t = [v - mean(z) for v in z], [v - mean(t) for v in t]
    total = 0.5 * sum((a - b) ** 2 for a, b in zip(z, t, strict=True))
    return total / len(z) if over_classes == "mean" else total


def hard_label(z, t):
    """-log p_c, c = argmax t."""
    return cross_entropy(z, t.index(max(t)))


def ensemble(teachers):
    """log of the mean over teachers of softmax(t), per class."""
    rows = [softmax(t) for t in teachers]
    return [math.log(mean([row[k] for row in rows])) for k in range(len(rows[0]))]


def dkd(z, t, y, target_weight, others_weight, temperature):
    """T^2 (target_weight KL(b_t || b_s) + others_weight KL(n_t || n_s)).

    b is the binary distribution (p_y, 1-p_y), n the non-target classes renormalised.
    """

    def binary(logits):
        scaled = [v / temperature for v in logits]
        total = log_sum_exp(scaled)
        return [scaled[y] - total, log_sum_exp(without(scaled, y)) - total]

    tckd = kl(binary(t), binary(z))
    nckd = kl(log_softmax(without(t, y), temperature), log_softmax(without(z, y), temperature))
    return temperature**2 * (target_weight * tckd + others_weight * nckd)


def nkd(z, t, y, others_weight, temperature):
    """-p_t[y] log p_s[y] - w T^2 sum_{j!=y} N(p_t)_j log N(p_s)_j.

    N are the non-target probabilities at T, renormalised; p is at temperature 1.
    """
    target = -softmax(t)[y] * log_softmax(z)[y]
    others = -dot(softmax(without(t, y), temperature), log_softmax(without(z, y), temperature))
    return target + others_weight * temperature**2 * others


def dist(Z, T_, inter_weight, intra_weight, temperature):
    """[i]: T^2 (inter_w (1 - pearson of rows i) + intra_w mean_k (1 - pearson of columns k)).

    The rows and columns are those of the softmaxes at T.
    """
    B, K = len(Z), len(Z[0])
    ps = [softmax(z, temperature) for z in Z]
    pt = [softmax(t, temperature) for t in T_]
    intra = mean(
        [1 - pearson([ps[i][k] for i in range(B)], [pt[i][k] for i in range(B)]) for k in range(K)]
    )
    inter = [1 - pearson(ps[i], pt[i]) for i in range(B)]
    return [temperature**2 * (inter_weight * inter[i] + intra_weight * intra) for i in range(B)]


# ---- distillation from features ----


def hint(projected, f_t, over_features="mean"):
    """1/2 mean (or sum) over D of (projected - f_t)^2."""
    total = 0.5 * sum((a - b) ** 2 for a, b in zip(projected, f_t, strict=True))
    return total / len(projected) if over_features == "mean" else total


def attention(stage):
    """mean over channels of squares, flattened over H x W, divided by its L2 norm."""
    C, H, W = len(stage), len(stage[0]), len(stage[0][0])
    flat = [mean([stage[c][h][w] ** 2 for c in range(C)]) for h in range(H) for w in range(W)]
    norm = length(flat)
    return [v / norm for v in flat]


def attention_transfer(maps_s, maps_t):
    """sum over stages, paired from the last, of mean over positions of (A_s - A_t)^2."""
    total = 0.0
    for back in range(1, min(len(maps_s), len(maps_t)) + 1):
        a_s, a_t = attention(maps_s[-back]), attention(maps_t[-back])
        total += mean([(a - b) ** 2 for a, b in zip(a_s, a_t, strict=True)])
    return total


def scaled_distances(F):
    """|f_i - f_j| / mean of the same over ordered pairs i != j."""
    B = len(F)
    d = [
        [length([a - b for a, b in zip(F[i], F[j], strict=True)]) for j in range(B)]
        for i in range(B)
    ]
    scale = mean([d[i][j] for i in range(B) for j in range(B) if i != j])
    return [[d[i][j] / scale for j in range(B)] for i in range(B)]


def angle_cosines(F):
    """[i][j][k]: u_ij . u_ik, u_ij = (f_j - f_i) / |f_j - f_i|, or 0 where that is 0."""
    B = len(F)
    cosines = []
    for i in range(B):
        units = []
        for j in range(B):
            step = [a - b for a, b in zip(F[j], F[i], strict=True)]
            norm = length(step)
            units.append([v / norm for v in step] if norm > 0 else step)
        cosines.append([[dot(units[j], units[k]) for k in range(B)] for j in range(B)])
    return cosines


def rkd(F_s, F_t, distance_weight, angle_weight):
    """[i]: dw sum_j huber(d_s - d_t)_ij / B + aw sum_jk huber(cos_s - cos_t)_ijk / B^2."""
    B = len(F_s)
    d_s, d_t = scaled_distances(F_s), scaled_distances(F_t)
    c_s, c_t = angle_cosines(F_s), angle_cosines(F_t)
    result = []
    for i in range(B):
        distance = sum(huber(d_s[i][j] - d_t[i][j]) for j in range(B)) / B
        angle = sum(huber(c_s[i][j][k] - c_t[i][j][k]) for j in range(B) for k in range(B)) / B**2
        result.append(distance_weight * distance + angle_weight * angle)
    return result


# ---- weights ----


def l1_penalty(matrices):
    """sum |w| over all matrices."""
    return sum(abs(w) for matrix in matrices for row in matrix for w in row)


def l2_penalty(matrices):
    """1/2 sum w^2 over all matrices."""
    return 0.5 * sum(w * w for matrix in matrices for row in matrix for w in row)


def optimal_logit_gap(K, smoothing, smooth_over):
    """all: log((K-(K-1)a)/a); wrong: log((1-a)(K-1)/a); inf at a = 0."""
    if smoothing == 0:
        return math.inf
    if smooth_over == "all":
        return math.log((K - (K - 1) * smoothing) / smoothing)
    return math.log((1 - smoothing) * (K - 1) / smoothing)
