import torch

from hf_distinct.data.hashing import stable_hash


def test_hash_does_not_change_between_versions():
    # A changed hash would silently break checkpoints that hold hashed ids.
    # `printf '%s' TEXT | b2sum -l 64` gives 300d09f2a47bb838 and e83335cfe1549b3a, whose first bit is set.
    assert stable_hash("391895") == 3462434626264086584
    assert stable_hash("日本") == -1714967866143106246


def test_hash_fits_int64_and_takes_lone_surrogates():
    values = [stable_hash(str(number)) for number in range(1000)] + [stable_hash("\ud83d")]
    assert torch.tensor(values, dtype=torch.int64).tolist() == values
    assert len(set(values)) == 1001
    assert min(values) < 0 < max(values)
