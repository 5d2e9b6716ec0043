"""What an operator has set on requests, as values: killswitches, policies and limits."""

from dataclasses import dataclass, field

from tierstore.admission.killswitches import Killswitches
from tierstore.admission.rate_limits import Bandwidth, Throughput
from tierstore.admission.usecases import UsecasePolicies


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """All that is set, as it was read and checked together."""

    killswitches: Killswitches = field(default_factory=Killswitches)
    policies: UsecasePolicies = field(default_factory=UsecasePolicies)
    throughput: Throughput = field(default_factory=Throughput)
    bandwidth: Bandwidth = field(default_factory=Bandwidth)
