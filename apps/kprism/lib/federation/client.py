# SPDX-License-Identifier: Apache-2.0
"""The script that FLARE runs at a site: `client.py PLAN`, the plan as one word (`FederationPlan.encoded`).

The environment variable `KPRISM_FEDERATION_SITES` names a JSON file of this machine: {site: {"studies": FOLDER, "conf":
{KEY: VALUE}}}. What FLARE sends to the server are the weights and one number, that of the labelled cases. An error's
text may name a case, so it stays at the site, in federation/error.txt; FLARE learns only that there was one.
"""

import sys

import nvflare.client as flare

from lib.federation.local_site import LocalSite, keep_messages
from lib.federation.plan import FederationPlan


def main() -> None:
    """Answer FLARE's rounds until there are no more."""
    keep_messages()
    flare.init()
    site = LocalSite(flare.get_site_name(), FederationPlan.decoded(sys.argv[1]))
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        arrays = site.train(received.params, received.current_round)
        flare.send(
            flare.FLModel(params=arrays, params_type="FULL", meta={"NUM_STEPS_CURRENT_ROUND": site.cases}),
        )


if __name__ == "__main__":
    main()
