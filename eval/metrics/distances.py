"""Statistics -> numbers: all that two sets of pictures say about each other."""

from __future__ import annotations

from ..feature_network import FeatureNetwork
from ..provenance import Provenance
from ..report import Number
from .frechet import too_few
from .inception_score import SPLITS
from .kid import kernel_distance
from .prdc import prdc
from .statistics import Statistics, fid, kept_rows

KID_SUBSETS = 100
NEIGHBOURS, NEIGHBOURS_DENSITY = 3, 5


def distances(
    drawn: Statistics, real: Statistics, network: FeatureNetwork, facts: Provenance | None = None, seed: int = 0
) -> tuple[dict[str, Number], list[str]]:
    """Numbers of the drawn set against the real one, and what to know when reading them.

    FID always; KID, precision, recall, density and coverage when both sets have features; Inception Score of the drawn
    set when the network has class scores.

    Args:
        drawn: statistics of the set that is judged.
        real: statistics of the reference set.
        network: that both were made with.
        facts: more to say about every number.
        seed: chooses the subsets of KID, as it chose what was kept of the sets.
    """
    facts = {**pair_facts(drawn, real, network), **(facts or {})}
    label = network.label
    numbers = {"fid": Number(f"FID ({label})", fid(drawn, real), "", "lower", facts)}
    warnings = _notes(drawn, real, network)
    if drawn.features is None or real.features is None:
        warnings.append(
            "KID, precision, recall, density and coverage are left out: they need features, and saved statistics hold "
            "only mean and covariance; give the pictures"
        )
    else:
        of_drawn, of_real = kept_rows(drawn.features, seed), kept_rows(real.features, seed)  # also where all are held
        few = min(len(of_drawn), len(of_real))
        kept: Provenance = {**facts, "features used": f"{len(of_drawn)} and {len(of_real)}"}
        if few >= 4:
            kid = kernel_distance(of_drawn, of_real, KID_SUBSETS, seed=seed)
            of_kid: Provenance = {**kept, "subsets": KID_SUBSETS, "subset size": kid.subset_size, "subset seed": seed}
            numbers["kid"] = Number(f"KID ({label})", kid.mean, "", "lower", of_kid)
            numbers["kid_std"] = Number("KID, standard deviation over subsets", kid.std, "", "", of_kid)
        if few > NEIGHBOURS_DENSITY:
            found = prdc(of_real, of_drawn, NEIGHBOURS, NEIGHBOURS_DENSITY)
            for key, value in found._asdict().items():
                k = NEIGHBOURS if key in ("precision", "recall") else NEIGHBOURS_DENSITY
                unit = "" if key == "density" else "%"
                title = f"{key.capitalize()} (k={k}, {label})"
                numbers[key] = Number(title, value, unit, "higher", {**kept, "k": k})
        if few <= NEIGHBOURS_DENSITY:
            warnings.append(
                f"{few} pictures are too few for precision, recall, density and coverage"
                f"{'' if few >= 4 else ' and for KID'}: give at least {NEIGHBOURS_DENSITY + 1} in each set"
            )
    if drawn.score is not None:
        of_score: Provenance = {**facts, "splits": SPLITS, "subset seed": seed}
        numbers["inception_score"] = Number(f"Inception Score ({label})", drawn.score.mean, "", "higher", of_score)
        numbers["inception_score_std"] = Number(
            "Inception Score, spread over splits", drawn.score.std, "", "", of_score
        )
    return numbers, warnings


def pair_facts(drawn: Statistics, real: Statistics, network: FeatureNetwork) -> Provenance:
    """Provenance of a number that compares two sets."""
    return {
        **network.origin,
        "set": drawn.provenance.get("name"),
        "set_sha256": drawn.provenance.get("sha256"),
        "pictures": drawn.gaussian.count or None,
        "image size": drawn.provenance.get("image size"),
        "reference": real.provenance.get("name"),
        "reference_sha256": real.provenance.get("sha256"),
        "reference pictures": real.gaussian.count or None,
        "reference image size": real.provenance.get("image size"),
    }


def _notes(drawn: Statistics, real: Statistics, network: FeatureNetwork) -> list[str]:
    """What a reader of the numbers must know of the two sets."""
    known = [one.gaussian.count for one in (drawn, real) if one.gaussian.count]
    notes = too_few(min(known), network.dim) if known else []
    for one in (drawn, real):
        if not one.gaussian.network:
            notes.append(
                f"{one.provenance.get('name')} does not say which network made it; it has {network.name}'s "
                f"{network.dim} dimensions, and FID is right only if it is of the same weights and resizing"
            )
    sizes = [str(one.provenance.get("image size")).split(" (")[0] for one in (drawn, real)]
    if "None" not in sizes and sizes[0] != sizes[1]:
        notes.append(
            f"the pictures are {sizes[0]} and {sizes[1]}: resizing differs between the sets, and part of the distance "
            "is that; measure both at one size (--image_size of `eval fid` and `eval statistics`)"
        )
    return notes
