"""Slow reference definitions for analyses of networks, in plain Python and independent of torch."""

import math

# ---- shared helpers ----


def mean(values):
    """sum / n."""
    return math.fsum(values) / len(values)


def deviation(values):
    """Population standard deviation: sqrt of the mean of (v - mean)^2."""
    centre = mean(values)
    return math.sqrt(mean([(v - centre) ** 2 for v in values]))


def dot(a, b):
    """sum_i a_i b_i."""
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def distance(a, b):
    """sqrt sum_i (a_i - b_i)^2."""
    return math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def cosine(a, b):
    """a.b / (|a| |b|); 0 if either vector has length 0, also of such a vector with itself."""
    norms = math.sqrt(dot(a, a)) * math.sqrt(dot(b, b))
    return dot(a, b) / norms if norms > 0 else 0.0


def centroid(rows):
    """The mean of the rows, column by column."""
    return [mean([row[d] for row in rows]) for d in range(len(rows[0]))]


def by_class(rows, labels):
    """{label: its rows}, only of the classes that occur."""
    return {
        c: [row for row, y in zip(rows, labels, strict=True) if y == c] for c in sorted(set(labels))
    }


def log_mean_exp(values):
    """log (1/n) sum_j exp(v_j), the max subtracted first."""
    top = max(values)
    return top + math.log(mean([math.exp(v - top) for v in values]))


# ---- features ----


def class_separation(features, labels):
    """1 - within/total of cosine distances d = 1 - cos.

    within = sum_kmn d(x_km, x_kn) / (K N_k^2), total = sum_jkmn d(x_jm, x_kn) / (K^2 N_j N_k).
    Pairs of a vector with itself count (Kornblith et al. 2021, Eq. 11); K = the classes that occur.
    """
    groups = by_class(features, labels)
    within = 0.0
    total = 0.0
    for j in groups:
        for k in groups:
            for a in groups[j]:
                for b in groups[k]:
                    apart = 1 - cosine(a, b)
                    total += apart / (len(groups) ** 2 * len(groups[j]) * len(groups[k]))
                    if j == k:
                        within += apart / (len(groups) * len(groups[k]) ** 2)
    return 1 - within / total


def outer_mean(rows):
    """(1/n) sum_i r_i r_i^T."""
    size = len(rows[0])
    return [[mean([row[a] * row[b] for row in rows]) for b in range(size)] for a in range(size)]


def symmetric_eigen(matrix, sweeps=100):
    """(eigenvalues, eigenvectors) of a symmetric matrix, in one order, by Jacobi rotations."""
    size = len(matrix)
    a = [list(row) for row in matrix]
    v = [[1.0 if i == j else 0.0 for j in range(size)] for i in range(size)]
    for _ in range(sweeps):
        for p in range(size):
            for q in range(p + 1, size):
                if a[p][q] == 0:
                    continue
                spread = a[q][q] - a[p][p]
                angle = 0.5 * math.atan(2 * a[p][q] / spread) if spread != 0 else math.pi / 4
                c, s = math.cos(angle), math.sin(angle)
                for i in range(size):  # columns p and q of A and V
                    a[i][p], a[i][q] = c * a[i][p] - s * a[i][q], s * a[i][p] + c * a[i][q]
                    v[i][p], v[i][q] = c * v[i][p] - s * v[i][q], s * v[i][p] + c * v[i][q]
                for i in range(size):  # rows p and q of A
                    a[p][i], a[q][i] = c * a[p][i] - s * a[q][i], s * a[p][i] + c * a[q][i]
                a[p][q] = a[q][p] = 0.0
    return [a[i][i] for i in range(size)], [[v[d][i] for d in range(size)] for i in range(size)]


def pseudo_inverse(matrix, cutoff=1e-10):
    """sum_i v_i v_i^T / e_i over the eigenvalues of a symmetric matrix, |e_i| > cutoff max |e|."""
    size = len(matrix)
    values, vectors = symmetric_eigen(matrix)
    kept = [i for i in range(size) if abs(values[i]) > cutoff * max(abs(e) for e in values)]
    return [
        [math.fsum(vectors[i][a] * vectors[i][b] / values[i] for i in kept) for b in range(size)]
        for a in range(size)
    ]


def nc1(features, labels):
    """(1/K) tr(S_W S_B^+).

    S_W = mean_i (h_i-m_c(i))(h_i-m_c(i))^T, S_B = mean_c (m_c-m_G)(m_c-m_G)^T, m_G = mean_c m_c; K
    = the classes that occur.
    """
    means = {c: centroid(rows) for c, rows in by_class(features, labels).items()}
    middle = centroid(list(means.values()))
    within = outer_mean(
        [
            [h - m for h, m in zip(x, means[y], strict=True)]
            for x, y in zip(features, labels, strict=True)
        ]
    )
    between = outer_mean(
        [[m - g for m, g in zip(row, middle, strict=True)] for row in means.values()]
    )
    inverse = pseudo_inverse(between)
    size = len(middle)
    trace = 0.0
    for a in range(size):
        for b in range(size):
            trace += within[a][b] * inverse[b][a]
    return trace / len(means)


def wrong_template_spread(features, templates, labels):
    """mean_i of (population sd over k != y of |x - w_k|) / (mean over k != y of |x - w_k|)."""
    ratios = []
    for x, y in zip(features, labels, strict=True):
        far = [distance(x, w) for k, w in enumerate(templates) if k != y]
        ratios.append(deviation(far) / mean(far))
    return mean(ratios)


# ---- logits ----


def logit_gap(logits, labels):
    """(mean, population sd) of z_y - z_k over all examples and all k != y, pooled."""
    gaps = []
    for z, y in zip(logits, labels, strict=True):
        for k in range(len(z)):
            if k != y:
                gaps.append(z[y] - z[k])
    return mean(gaps), deviation(gaps)


def smoothed_loss(gap, smoothing, classes):
    """-sum_j q_j log softmax(z)_j with z_y = gap, z_k = 0, q_y = 1 - s + s/K, q_k = s/K."""
    minus_log_target = math.log1p(math.fsum(math.exp(-gap) for _ in range(classes - 1)))
    terms = [(1 - smoothing + smoothing / classes) * minus_log_target]
    for _ in range(classes - 1):
        terms.append(smoothing / classes * (minus_log_target + gap))
    return math.fsum(terms)


def optimal_gap(smoothing, classes):
    """argmin over g in [-50, 100] of smoothed_loss(g), by golden section, to about 1e-6.

    inf at smoothing 0.
    """
    if smoothing == 0:
        return math.inf
    golden = (math.sqrt(5) - 1) / 2
    low, high = -50.0, 100.0
    for _ in range(200):
        left = high - golden * (high - low)
        right = low + golden * (high - low)
        if smoothed_loss(left, smoothing, classes) < smoothed_loss(right, smoothing, classes):
            high = right
        else:
            low = left
    return (low + high) / 2


def margin_loss(logits_row, label):
    """max over k != y of z_k - z_y."""
    return max(z - logits_row[label] for k, z in enumerate(logits_row) if k != label)


# ---- information ----


def mutual_information(draws, values):
    """mean_x [-(y_x-m_x)^2/(2s^2) - log mean_x' exp(-(y_x-m_x')^2/(2s^2))].

    m_x = mean(draws[x]), s^2 = mean_x (y_x-m_x)^2.
    Where s^2 = 0: mean_x of -log(#{x': m_x' = y_x} / N).
    """
    centres = [mean(row) for row in draws]
    count = len(values)
    variance = mean([(y - m) ** 2 for y, m in zip(values, centres, strict=True)])
    terms = []
    for x in range(count):
        if variance == 0:
            terms.append(-math.log(sum(1 for m in centres if m == values[x]) / count))
        else:
            exponents = [-((values[x] - m) ** 2) / (2 * variance) for m in centres]
            terms.append(exponents[x] - log_mean_exp(exponents))
    return mean(terms)


def literal_information(draws, values):
    """mean_x [-(y_x-m_x)^2/(2s^2)] - log mean_x exp(-(y_x-m_x)^2/(2s^2)): the misprint.

    0 where s^2 = 0.
    """
    centres = [mean(row) for row in draws]
    variance = mean([(y - m) ** 2 for y, m in zip(values, centres, strict=True)])
    if variance == 0:
        return 0.0
    exponents = [-((y - m) ** 2) / (2 * variance) for y, m in zip(values, centres, strict=True)]
    return mean(exponents) - log_mean_exp(exponents)


def two_cluster_information(centres, sd, steps):
    """integral of mean_x p(y|x) log(p(y|x)/p(y)) dy.

    p(y|x) = Normal(centres[x], sd^2), p(y) = mean_x p(y|x). Trapezoid with `steps` intervals over
    [min - 12 sd, max + 12 sd]; a step should be below sd / 2.
    """
    low, high = min(centres) - 12 * sd, max(centres) + 12 * sd
    width = (high - low) / steps
    total = 0.0
    for i in range(steps + 1):
        y = low + i * width
        logs = [
            -((y - m) ** 2) / (2 * sd**2) - math.log(sd * math.sqrt(2 * math.pi)) for m in centres
        ]
        marginal = log_mean_exp(logs)
        height = mean([math.exp(v) * (v - marginal) for v in logs])
        total += height * width * (0.5 if i in (0, steps) else 1.0)
    return total


# ---- calibration and predictions ----


def binned_gap(bin_of, observed, predicted):
    """sum_b n_b/N |mean observed - mean predicted| over the bins that hold an example."""
    total = 0.0
    for b in sorted(set(bin_of)):
        inside = [i for i in range(len(bin_of)) if bin_of[i] == b]
        gap = mean([observed[i] for i in inside]) - mean([predicted[i] for i in inside])
        total += len(inside) / len(bin_of) * abs(gap)
    return total


def equal_mass_ece(confidence, correct, bins=15):
    """sum_b n_b/N |accuracy - mean confidence|, the bin of i is floor(bins * #{j: c_j < c_i} / N).

    Ties share a bin.
    """
    bin_of = [
        bins * sum(1 for other in confidence if other < c) // len(confidence) for c in confidence
    ]
    return binned_gap(bin_of, [int(hit) for hit in correct], confidence)


def classwise_ece(probabilities, labels, bins=15):
    """mean_k sum_b n_bk/N |mean 1[y=k] - mean p_k|, equal bins (lo, hi] of p_k.

    p_k = 0 is in the first.
    """
    per_class = []
    for k in range(len(probabilities[0])):
        column = [row[k] for row in probabilities]
        bin_of = [min(bins - 1, max(0, math.ceil(p * bins) - 1)) for p in column]
        per_class.append(binned_gap(bin_of, [1 if y == k else 0 for y in labels], column))
    return mean(per_class)


def stability(probabilities, labels):
    """1 - mean_c mean_{i in c} |p_i - mean of p over c|^2 (Shen et al. 2021), c occurring."""
    spreads = []
    for rows in by_class(probabilities, labels).values():
        middle = centroid(rows)
        spreads.append(mean([distance(row, middle) ** 2 for row in rows]))
    return 1 - mean(spreads)


def near_classes(probabilities, labels, count):
    """[k]: the set of `count` classes j != k with the largest P_kj + P_jk, ties to the smaller j.

    P_kj = mean of p_ij over the i with label k, 0 for a class that does not occur.
    """
    classes = range(len(probabilities[0]))
    groups = by_class(probabilities, labels)
    confusion = [centroid(groups[k]) if k in groups else [0.0 for _ in classes] for k in classes]
    near = []
    for k in classes:
        others = [j for j in classes if j != k]
        others.sort(key=lambda j: (-(confusion[k][j] + confusion[j][k]), j))
        near.append(set(others[:count]))
    return near


def diffusion(base, moved, near):
    """mean of log(|m_k-m_j| / |b_k-b_j|) over j not in near[k], minus it over j in near[k].

    Over ordered pairs j != k.
    """
    inside, outside = [], []
    for k in range(len(base)):
        for j in range(len(base)):
            if j != k:
                change = math.log(distance(moved[k], moved[j]) / distance(base[k], base[j]))
                (inside if j in near[k] else outside).append(change)
    return mean(outside) - mean(inside)


def ece(confidence, correct, bins=15):
    """Σ n_b/N |accuracy - confidence| over bins (lo, hi], example by example."""
    total = 0.0
    for b in range(bins):
        inside = [
            i
            for i, c in enumerate(confidence)
            if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)
        ]
        if inside:
            gap = sum(correct[i] for i in inside) / len(inside) - sum(
                confidence[i] for i in inside
            ) / len(inside)
            total += len(inside) / len(confidence) * abs(gap)
    return total
