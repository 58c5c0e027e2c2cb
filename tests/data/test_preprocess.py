import numpy as np
import pytest
import torch

import bench.data
from bench.data import preprocess
from bench.data.preprocess import Transform, fit, from_tensors, whitening
from bench.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def images():
    """Correlated colour images uint8 [n, 3, 4, 4], more of them than values."""
    rng = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(200, 3, 2, 2, generator=rng), size=4, mode="bilinear")
    return ((0.8 * smooth + 0.2 * torch.rand(200, 3, 4, 4, generator=rng)) * 255).byte()


def oracle(kind, images):
    """Whitened images in NumPy, float64, by singular values, straight from the papers' recipes; and T."""
    x = images.numpy().astype(np.float64) / 255
    n, d = len(x), x[0].size
    if kind != "zca-kornia":
        x = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    rows = x.reshape(n, d)
    if kind == "zca-kip":
        rows = rows - rows.mean(1, keepdims=True)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        c = rows.T @ rows / n
    else:
        rows = rows - rows.mean(0)
        c = np.cov(rows, rowvar=False, bias=kind == "zca-frepo")
    ridge = 0.1 if kind == "zca-kornia" else 0.1 * np.trace(c) / d
    u, s, _ = np.linalg.svd(c + ridge * np.eye(d))
    scale = s**-0.5
    if kind != "zca-kornia":
        scale[n - (kind == "zca-frepo") :] = 1
    t = (u * scale) @ u.T
    return (rows @ t).reshape(images.shape), t


@pytest.mark.parametrize("kind", ["zca-kornia", "zca-kip", "zca-frepo"])
@pytest.mark.parametrize("n", [200, 30])
def test_whitening_is_the_papers(kind, n, images):
    images = images[:n]
    fitted = fit(kind, images, CPU)
    expected, t = oracle(kind, images)
    torch.testing.assert_close(fitted.matrix.double(), torch.from_numpy(t), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fitted.forward(images / 255).double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


def test_two_dimensional_example():
    """(1,0), (0,1), (-1,0), (0,-1): covariance 2/3 I, hence T = (2/3 + 0.1)^(-1/2) I = 1.142080 I."""
    points = torch.tensor([[0.0, 1], [1, 0], [-1, 0], [0, -1]], dtype=torch.float64)
    covariance = points.T @ points / 3
    torch.testing.assert_close(
        whitening(covariance, 0.1), 1.142080 * torch.eye(2, dtype=torch.float64), rtol=0, atol=5e-7
    )
    pixels = torch.tensor([[0, 1], [1, 0], [2, 1], [1, 2]], dtype=torch.uint8) * 100  # the same, scaled and shifted
    fitted = fit("zca-kornia", pixels.view(4, 1, 1, 2), CPU)
    scale = (100 / 255) ** 2
    torch.testing.assert_close(fitted.matrix, (2 / 3 * scale + 0.1) ** -0.5 * torch.eye(2))
    torch.testing.assert_close(fitted.centre, torch.full((2,), 100 / 255))


@pytest.mark.parametrize("kind", ["zca-kornia", "zca-kip", "zca-frepo"])
def test_matrix_is_symmetric_positive_definite(kind, images):
    matrix = fit(kind, images, CPU).matrix
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-5)
    assert torch.linalg.eigvalsh(matrix.double()).min() > 0


def test_covariance_after_whitening_is_s_over_s_plus_ridge(images):
    rows = (images.double() / 255).flatten(1)
    s, u = torch.linalg.eigh(rows.T.cov())
    z = fit("zca-kornia", images, CPU).forward(images / 255).double().flatten(1)
    torch.testing.assert_close(u.T @ z.T.cov() @ u, torch.diag(s / (s + 0.1)), rtol=0, atol=1e-5)


def test_no_ridge_gives_identity_covariance(images):
    z = fit("zca-kornia", images, CPU, ridge=1e-9).forward(images / 255).double().flatten(1)
    torch.testing.assert_close(z.T.cov(), torch.eye(48, dtype=torch.float64), rtol=0, atol=1e-3)


def space(kind, images) -> Transform:
    info = bench.data.info("debug").model_copy(update={"shape": (3, 4, 4), "content": "c0ffee"})
    return preprocess.transform(kind, info, images, CPU)


@pytest.mark.parametrize("kind", preprocess.KINDS)
def test_round_trip(kind, images):
    """Exact inverse, for zca-kip with the images' own statistics; on unseen images too."""
    fitted, pixels = space(kind, images[:150]), images / 255
    known = fitted.image_statistics(pixels) if kind == "zca-kip" else ()
    torch.testing.assert_close(fitted.inverse(fitted.forward(pixels), *known), pixels, rtol=0, atol=1e-4)
    if kind != "zca-kip":
        torch.testing.assert_close(fitted.to_pixels(fitted.forward(pixels)), pixels, rtol=0, atol=1e-4)


def test_kip_pictures_have_the_usual_brightness_and_contrast(images):
    fitted, pixels = space("zca-kip", images), images / 255
    pictures = fitted.inverse(fitted.forward(pixels))
    torch.testing.assert_close(pictures.mean((0, 2, 3)), pixels.mean((0, 2, 3)), rtol=0, atol=0.03)
    means, norms = fitted.image_statistics(pixels)
    assert fitted.typical_mean == pytest.approx(float(means.mean()), abs=1e-5)
    assert fitted.typical_norm == pytest.approx(float(norms.mean()), rel=1e-5)
    flat = torch.stack([pictures.flatten(1), pixels.flatten(1)])
    flat = flat - flat.mean(2, keepdim=True)
    likeness = (flat[0] * flat[1]).sum(1) / flat.norm(dim=2).prod(0)
    assert likeness.min() > 0.95


def test_meanstd_and_none_are_affine(images):
    info = bench.data.info("debug")
    pixels = images / 255
    expected = (pixels - torch.tensor(info.mean)[:, None, None]) / torch.tensor(info.std)[:, None, None]
    torch.testing.assert_close(space("meanstd", images).forward(pixels), expected)
    assert torch.equal(space("none", images).forward(pixels), pixels)
    assert space("none", images).to_pixels(torch.full((1, 3, 4, 4), 7.0)).max() == 1


@pytest.mark.parametrize("kind", preprocess.KINDS)
def test_tensors_are_all_that_must_travel(kind, images):
    fitted = space(kind, images)
    tensors = fitted.tensors()
    assert all(name.startswith("preprocessing/") for name in tensors)
    again = from_tensors(kind, (3, 4, 4), {**tensors, "latents": torch.zeros(3)})
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again.to_pixels(x), fitted.to_pixels(x))
    assert torch.equal(again.forward(x), fitted.forward(x))
    with pytest.raises(UserError, match="lacks mean"):
        from_tensors(kind, (3, 4, 4), {name: t for name, t in tensors.items() if "mean" not in name})


@pytest.mark.parametrize("kind", preprocess.KINDS)
def test_gradient_passes(kind, images):
    """Forward and inverse are differentiable: against finite differences in float64."""
    fitted = space(kind, images)
    double = Transform(
        **{
            name: value.double() if torch.is_tensor(value) else value
            for name, value in ((f, getattr(fitted, f)) for f in fitted.__dataclass_fields__)
        }
    )
    x = (images[:2] / 255).double().requires_grad_()
    assert torch.autograd.gradcheck(double.forward, x)
    assert torch.autograd.gradcheck(double.inverse, x)


def test_constant_images_stay_finite():
    grey = torch.full((6, 3, 4, 4), 128, dtype=torch.uint8)
    grey[0, 0, 0, 0] = 0
    for kind in ("zca-kornia", "zca-kip", "zca-frepo"):
        assert fit(kind, grey, CPU).forward(grey / 255).isfinite().all()


def test_matrices_are_kept_by_content_and_kind(images, tmp_path, monkeypatch):
    folder = tmp_path / "zca"
    info = bench.data.info("debug").model_copy(update={"shape": (3, 4, 4), "content": "c0ffee"})
    first = preprocess.transform("zca-kip", info, images, CPU, folder)
    assert [file.name for file in folder.iterdir()] == ["c0ffee-zca-kip.safetensors"]
    with monkeypatch.context() as patched:
        patched.setattr(preprocess, "fit", lambda *arguments: pytest.fail("fitted twice"))
        again = preprocess.transform("zca-kip", info, images, CPU, folder)
    for name, value in first.tensors().items():
        assert torch.equal(again.tensors()[name], value)
    (folder / "c0ffee-zca-kip.safetensors").write_bytes(b"torn")
    assert torch.equal(preprocess.transform("zca-kip", info, images, CPU, folder).matrix, first.matrix)
    preprocess.transform("zca-kornia", info, images, CPU, folder)
    assert len(list(folder.iterdir())) == 2


def test_user_errors():
    info = bench.data.info("imagefruit")
    with pytest.raises(UserError, match=r"unknown preprocessing 'zca-kornja'.*zca-kornia"):
        preprocess.transform("zca-kornja", info, torch.zeros(2, 3, 4, 4).byte(), CPU)
    with pytest.raises(UserError, match=r"49152 x 49152 for imagefruit.*meanstd"):
        preprocess.transform("zca-kip", info, torch.zeros(2, 3, 128, 128).byte(), CPU)
