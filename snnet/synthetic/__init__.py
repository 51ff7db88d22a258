"""The built-in set: procedurally drawn pedestrians, so that training can be tried without a download.

What an image depends on, and on nothing else:

* **identity** (:mod:`.person`): proportions, skin, hair, hat, upper and lower garment with their colours and
  pattern (plain, stripes, checks, dots, two tones, other sleeves, print, open jacket), shoes, backpack, bag,
  suitcase. Half of the identities are look-alikes: they share the garments' colours with another one and
  differ in pattern, in what they carry, or in hair and shoes.
* **camera** (:mod:`.camera`): scene, directions people walk in, tilt, exposure, light gradient, colour cast,
  saturation, gamma, blur, resolution, noise, how tightly the frame sits.
* **image** (:mod:`.image`): place in the scene, pose, direction and light around the camera's own, scale and
  shift of the frame, passers-by, occlusion by things, people and the frame's edge.

Each of the three has its own generator, seeded by (seed, which of the three, split, identity, camera, number),
so the order of drawing does not matter. The figure (:mod:`.figure`) is a skeleton in three dimensions seen
through the camera; so fronts, backs, sides and tilted views agree with one another.

The size is fixed (:mod:`.plan`): 5 cameras; 200 training identities with 2,400 images; 150 other identities
with 300 queries and 1,800 gallery images; 150 distractors.
"""

from snnet.synthetic.writing import generate

__all__ = ["generate"]
