"""Reference definitions of feature distillation in plain Python, for lists of floats."""

from helpers.oracles import dot, huber, length, mean


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
