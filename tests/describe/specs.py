"""Valid specs that the tests of this folder break one by one."""

from __future__ import annotations

OUTCOMES = """\
space:
  kind: outcomes
  labels: [good, fine, bad]
  coordinates: [[1, 0], [0, 0], [0, 1]]
data:
  web: {kind: rows, rows: [good, fine, fine, bad]}
  poll: {kind: distribution, weights: [3, 2, 1]}
rewards:
  warm: {kind: table, values: [1, 0, -1]}
  cool: {kind: linear, vector: [0, 1]}
models:
  p:
    family: {kind: categorical}
    reward: warm
    sources:
      - {kind: real, data: web, weight: 0.5}
      - {kind: curated, producer: p, weight: 0.3}
      - {kind: curated, producer: q, weight: 0.2, candidates: 4, curator: cool}
  q:
    family:
      kind: loglinear
      features: [[1, 0], [0, 1], [0, 0]]
    reward: cool
    sources:
      - {kind: real, data: poll, weight: 0.6}
      - {kind: raw, producer: p, weight: 0.4, name: theirs}
update: {order: {kind: sequential, models: [p, q]}}
audit:
  changes: [{path: p.curation, to: 0.6}]
  thresholds: [{path: p.cross_share, low: 0, high: 0.9, affected: q, intervened: p}]
"""

VECTORS = """\
space: {kind: vectors, dim: 2}
data:
  web: {kind: rows, rows: [[0, 0], [1, 1], [2, 0]]}
  law: {kind: moments, mean: [0, 0], cov: [1, 2]}
rewards:
  far: {kind: linear, vector: [1, 0]}
  near: {kind: quadratic, matrix: -0.2, vector: [0, 1]}
  steep: {kind: quadratic, matrix: 2}
models:
  p:
    family: {kind: gaussian_mean, cov: [[1, 0.2], [0.2, 1]]}
    reward: near
    sources:
      - {kind: real, data: web, weight: 0.4}
      - {kind: raw, producer: q, weight: 0.2, map: {matrix: 0.9, shift: [0, 1]}}
      - {kind: curated, producer: p, weight: 0.4, candidates: inf, noise: 0.1}
    start: [0, 1]
  q:
    family: {kind: gaussian}
    reward: far
    sources:
      - {kind: real, data: law, weight: 0.7}
      - {kind: curated, producer: p, weight: 0.3, then: {curator: near}}
update: {order: {kind: cycle, rounds: [[[p, q]], [[p], [q]]]}}
"""

REGRESSION = """\
space: {kind: regression, inputs: 2, outputs: 1}
data:
  seen: {kind: pairs, x: [[1, 0], [0, 1]], y: [1, 2]}
  law: {kind: teacher, matrix: [[1, 2]], domain: wide}
domains:
  wide: {kind: gaussian, mean: [0, 1], cov: [1, 0]}
  few: {kind: points, points: [[1, 0], [1, 1]], weights: [1, 2]}
rewards:
  high: {kind: linear, vector: [1]}
  close: {kind: quadratic, matrix: [0, 0, -1]}
models:
  p:
    family: {kind: linear_gaussian, noise: 0.5}
    reward: high
    domain: wide
    sources:
      - {kind: real, data: seen, weight: 0.5}
      - {kind: curated, producer: q, weight: 0.5, domain: few, temperature: 0, candidates: 4}
    evaluate:
      - {name: home}
      - {name: away, domain: few, reward: close}
  q:
    family: {kind: linear_gaussian}
    reward: high
    sources:
      - {kind: real, data: law, weight: 1}
    evaluate:
      - {name: home, domain: few}
"""

IMAGES = """\
space: {kind: images, file: 'sample:cifar10', cells: {hue: 4}}
data:
  all: {kind: images}
rewards:
  warm: {kind: hue_band, bands: [[0, 0.17], [0.92, 1]]}
models:
  p:
    family: {kind: loglinear, features: [mean, label]}
    reward: warm
    sources:
      - {kind: real, data: all, weight: 1}
"""
VALID = {"outcomes": OUTCOMES, "vectors": VECTORS, "regression": REGRESSION, "images": IMAGES}
