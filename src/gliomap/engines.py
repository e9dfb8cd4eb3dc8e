"""The engines of a model file. What needs torch is imported when it is asked for."""

from gliomap.errors import UsageError
from gliomap.model_file import Model
from gliomap.segmenter import Engine


def load_engines(model: Model, device: str = "auto", name: str = "auto") -> tuple[Engine, ...]:
    """An engine of that name (``auto``, ``torch``) for each network of a model file on a device (``auto``, ``cpu``, ``cuda``).

    Raises:
        UsageError: there is no such device or engine.
        IntegrityError: the weights do not fit the network that the recipe names.
    """
    if name not in ("auto", "torch"):
        raise UsageError(f"no engine is called {name!r}; expected auto or torch")
    from gliomap.torch_engine import find_device, load_networks, torch_engine  # noqa: PLC0415 - torch takes two seconds

    where = find_device(device)
    networks = load_networks(model, where)
    return tuple(Engine(torch_engine(network, where), network.divisors) for network in networks)
