"""The operations of DSA once more, pixel by pixel in Python, for one image [c, h, w] in float64."""

import math

import torch


def bilinear(image, row, column):
    """Read one image at a fractional position; 0 outside."""
    _, height, width = image.shape
    value = torch.zeros(image.shape[0], dtype=image.dtype)
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                value += image[:, i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return value


def resample(image, source):
    """Build an image whose pixel at (x, y), measured from -1 to 1, is read at source(x, y)."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            x, y = source(2 * j / (width - 1) - 1, 2 * i / (height - 1) - 1)
            out[:, i, j] = bilinear(image, (y + 1) * (height - 1) / 2, (x + 1) * (width - 1) / 2)
    return out


def scale(image, u):
    sx, sy = (1 / 1.2 + float(v) * (1.2 - 1 / 1.2) for v in u[:2])
    return resample(image, lambda x, y: (sx * x, sy * y))


def rotate(image, u):
    a = math.radians((float(u[0]) - 0.5) * 2 * 15)
    return resample(image, lambda x, y: (math.cos(a) * x - math.sin(a) * y, math.sin(a) * x + math.cos(a) * y))


def flip(image, u):
    return torch.stack([image[:, :, image.shape[2] - 1 - j] for j in range(image.shape[2])], 2) if u[0] < 0.5 else image


def crop(image, u):
    _, height, width = image.shape
    shifts = [min(int(float(v) * (2 * d + 1)), 2 * d) - d
              for v, d in zip(u, (int(height * 0.125 + 0.5), int(width * 0.125 + 0.5)), strict=False)]  # fmt: skip
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            if 0 <= i + shifts[0] < height and 0 <= j + shifts[1] < width:
                out[:, i, j] = image[:, i + shifts[0], j + shifts[1]]
    return out


def cutout(image, u, ratio=0.5):
    _, height, width = image.shape
    out = image.clone()
    box = [int(side * ratio + 0.5) for side in (height, width)]
    offset = [int(float(v) * (side + 1 - b % 2)) for v, side, b in zip(u, (height, width), box, strict=False)]
    for k in range(box[0]):
        for m in range(box[1]):
            i = min(max(offset[0] - box[0] // 2 + k, 0), height - 1)
            j = min(max(offset[1] - box[1] // 2 + m, 0), width - 1)
            out[:, i, j] = 0
    return out


def color(image, u):
    image = image + (float(u[0]) - 0.5)
    grey = image.mean(0, keepdim=True)
    image = grey + (image - grey) * 2 * float(u[1])
    return image.mean() + (image - image.mean()) * (float(u[2]) + 0.5)


DSA = {"color": color, "crop": crop, "cutout": cutout, "flip": flip, "scale": scale, "rotate": rotate}
