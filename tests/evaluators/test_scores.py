"""Scores against closed forms, and against plain NumPy, SciPy and scikit-learn versions of their papers' formulas."""

import json
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from evaluators import scores
from evaluators.ood import OODParams, ScoreName
from evaluators.scores import SCORES, Known, Undefined
from evaluators.seen import Head, Seen

Z = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)


def rows(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HEAD = Head(rows(3, 12, seed=8), rows(3, seed=9))


def seen(features):
    return Seen(features, HEAD(features))


def close(found, expected, tolerance=1e-9):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------ from the logits


def test_one_image():
    assert scores.msp(Z).item() == pytest.approx(1 - 0.8437947, abs=5e-8)
    assert scores.max_logit(Z).item() == -2
    assert scores.energy(Z).item() == pytest.approx(-2.1698460, abs=5e-8)
    assert scores.gen(Z, 0.1).item() == pytest.approx(2.3370331, abs=5e-8)


def test_all_of_the_logits_against_scipy():
    z = 3 * rows(50, 7)
    p = scipy.special.softmax(z.numpy(), 1)
    close(scores.msp(z), 1 - p.max(1))
    close(scores.energy(z, 2.5), -2.5 * scipy.special.logsumexp(z.numpy() / 2.5, 1))
    close(scores.entropy(z), scipy.stats.entropy(p, axis=1))
    close(scores.gen(z, 0.5, 3), (np.sqrt(p * (1 - p)) * (p >= np.sort(p)[:, -3:-2])).sum(1))
    close(scores.gen(z, 0.1, 100), (p**0.1 * (1 - p) ** 0.1).sum(1))


def test_confidence_beyond_the_precision_is_still_ordered():
    z = torch.tensor([[100.0, 0.0, 0.0], [101.0, 0.0, 0.0], [102.0, 0.0, 0.0]], dtype=torch.float64)
    for score in (scores.msp, scores.entropy, scores.gen):
        first, second, third = score(z).tolist()
        assert first > second > third > 0


def test_limits():
    assert scores.energy(Z, 1e-6).item() == pytest.approx(scores.max_logit(Z).item())
    assert scores.gen(1e4 * torch.eye(3, dtype=torch.float64)).abs().max() == 0
    uniform = torch.zeros(1, 5, dtype=torch.float64)
    assert scores.entropy(uniform).item() == pytest.approx(math.log(5))
    assert (scores.entropy(rows(100, 5)) < math.log(5)).all()


# ------------------------------------------------------------------------------------ known images


def plain_mahalanobis(known, labels, images, precision):
    means = [known[labels == c].mean(0) for c in np.unique(labels)]
    return np.array([min((f - mu) @ precision @ (f - mu) for mu in means) for f in images])


def centred(known, labels):
    return np.concatenate([known[labels == c] - known[labels == c].mean(0) for c in np.unique(labels)])


@pytest.mark.parametrize("n", [12, 200], ids=["fewer images than features", "more"])
def test_mahalanobis_and_rmds(n):
    known, images, labels = rows(n, 30), 2 * rows(40, 30, seed=1), torch.arange(n) % 4 * 2
    k, y, x = known.numpy(), labels.numpy(), images.numpy()
    within = centred(k, y)
    precision = scipy.linalg.pinvh(within.T @ within / n)
    near = plain_mahalanobis(k, y, x, precision)
    close(scores.mahalanobis(known, labels)(seen_of(images)), near, 1e-8)
    whole = k - k.mean(0)
    far = plain_mahalanobis(k, 0 * y, x, scipy.linalg.pinvh(whole.T @ whole / n))
    close(scores.rmds(known, labels)(seen_of(images)), near - far, 1e-8)
    if n > 30:
        fitted = EmpiricalCovariance(assume_centered=True).fit(within)
        close(plain_mahalanobis(k, y, x, fitted.precision_), near, 1e-8)


def seen_of(features):
    return Seen(features, features[:, :3])


def test_mahalanobis_with_identity_covariance_and_one_class():
    axes = torch.eye(5, dtype=torch.float64) * math.sqrt(5)
    known = torch.cat([axes, -axes]) + 3  # mean 3, covariance the identity
    images = rows(20, 5)
    labels = torch.zeros(10, dtype=torch.int64)
    close(scores.mahalanobis(known, labels)(seen_of(images)), (images - 3).square().sum(1))
    assert scores.rmds(known, labels)(seen_of(images)).abs().max() < 1e-12


@pytest.mark.parametrize("score", [scores.mahalanobis, scores.rmds])
def test_one_image_per_class_has_no_covariance(score):
    with pytest.raises(Undefined, match="no spread"):
        score(rows(4, 30), torch.arange(4))


@pytest.mark.parametrize("k", [1, 5, 50])
def test_knn(k, monkeypatch):
    monkeypatch.setattr(scores, "CHUNK", 7)
    known, images = rows(30, 12), rows(40, 12, seed=1)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (known.numpy(), images.numpy())]
    neighbours = NearestNeighbors(n_neighbors=min(k, 30), algorithm="brute").fit(unit[0])
    close(scores.knn(known, k)(seen_of(images)), neighbours.kneighbors(unit[1])[0][:, -1], 1e-7)
    assert torch.isfinite(scores.knn(known, k)(seen_of(torch.zeros(3, 12, dtype=torch.float64)))).all()


def test_vim_as_its_authors_compute_it():
    known, images, dimension = rows(300, 12) * torch.arange(1, 13), 5 * rows(40, 12, seed=1), 4
    w, b = HEAD.weight.numpy(), HEAD.bias.numpy()
    u = -np.matmul(np.linalg.pinv(w), b)
    close(HEAD(torch.from_numpy(u)[None]), np.zeros((1, 3)))
    values, vectors = np.linalg.eigh(EmpiricalCovariance(assume_centered=True).fit(known.numpy() - u).covariance_)
    space = vectors[:, np.argsort(-values)[dimension:]]
    residual = np.linalg.norm((images.numpy() - u) @ space, axis=1)
    logits = HEAD(known).numpy()
    alpha = logits.max(1).mean() / np.linalg.norm((known.numpy() - u) @ space, axis=1).mean()
    expected = alpha * residual - scipy.special.logsumexp(HEAD(images).numpy(), 1)
    close(scores.vim(HEAD, seen(known), dimension)(seen(images)), expected, 1e-8)


def test_vim_of_few_images_keeps_a_residual():
    known, images = rows(5, 12), rows(40, 12, seed=1)
    few = scores.vim(HEAD, seen(known), 256)(seen(images))
    close(few, scores.vim(HEAD, seen(known), 4)(seen(images)))
    assert torch.isfinite(few).all()
    with pytest.raises(Undefined, match="fewer than two"):
        scores.vim(HEAD, seen(known[:1]))


# ------------------------------------------------------------------------------------ changed features


def test_react():
    known, images = rows(30, 12).abs(), rows(40, 12, seed=1).abs()
    cut = np.minimum(images.numpy(), np.percentile(known.numpy(), 80))
    expected = -scipy.special.logsumexp(cut @ HEAD.weight.numpy().T + HEAD.bias.numpy(), 1)
    close(scores.react(HEAD, known, 80)(seen(images)), expected)
    close(scores.react(HEAD, torch.full((2, 12), 1e9), 80)(seen(images)), scores.energy(HEAD(images)))


def shaped_row(kind, f, percentile):
    """Return one row of features as the papers' codes shape it."""
    k = len(f) - int(np.round(len(f) * percentile / 100))
    top = np.argsort(-f)[:k]
    total, kept = f.sum(), f[top].sum()
    out = np.zeros_like(f)
    out[top] = f[top]
    if kind == "ash_b":
        out[top] = total / k
    if kind == "ash_s":
        out = out * np.exp(total / kept)
    return f * np.exp(total / kept) if kind == "scale" else out


@pytest.mark.parametrize("percentile", [0, 65, 90])
@pytest.mark.parametrize("kind", ["ash_p", "ash_b", "ash_s", "scale"])
def test_ash_and_scale(kind, percentile):
    images = rows(40, 12).abs()
    expected = HEAD(torch.from_numpy(np.stack([shaped_row(kind, f, percentile) for f in images.numpy()])))
    found = scores.shaped(HEAD, getattr(scores, kind), percentile)(seen(images))
    close(found, scores.energy(expected))


def test_reductions_to_energy():
    images = rows(40, 12).abs()
    close(scores.shaped(HEAD, scores.ash_p, 0)(seen(images)), scores.energy(HEAD(images)))
    close(scores.shaped(HEAD, scores.scale, 0)(seen(images)), scores.energy(HEAD(math.e * images)))
    zeros = torch.zeros(2, 12, dtype=torch.float64)
    for change in (scores.ash_p, scores.ash_b, scores.ash_s, scores.scale):
        close(scores.shaped(HEAD, change, 99)(seen(zeros)), scores.energy(HEAD(zeros)))


def test_negative_features_have_no_shape():
    with pytest.raises(Undefined, match="not negative"):
        scores.shaped(HEAD, scores.ash_s, 90)(seen(-rows(2, 12).abs()))


# ------------------------------------------------------------------------------------ by name


def test_every_score_has_a_name_and_makes_a_rule():
    assert ScoreName.__args__ == tuple(SCORES)
    params = OODParams.model_validate_json(json.dumps({"scores": list(SCORES), "gen_gamma": 0.5, "temperature": 2}))
    images = rows(10, 12).abs()
    known = Known(HEAD, seen(rows(9, 12, seed=3).abs()), torch.arange(9) % 3)
    look = Seen(images, HEAD(images), perturbed=HEAD(images + 1))
    found = {name: score.make(known, params)(look) for name, score in SCORES.items()}
    assert {tuple(values.shape) for values in found.values()} == {(10,)}
    close(found["energy"], scores.energy(HEAD(images), 2.0))
    close(found["gen"], scores.gen(HEAD(images), 0.5))
    close(found["odin"], scores.msp(HEAD(images + 1) / 1000))
    close(found["scale"], scores.shaped(HEAD, scores.scale, 85)(look))
    assert [name for name, score in SCORES.items() if score.fitted] == ["mahalanobis", "rmds", "knn", "vim", "react"]
