"""Evidence: claims about a finetune tried on the base model and on the finetune."""

from weightdiff.behaviors.claims import Claim, read_claim, read_claims
from weightdiff.verify.trial import verify
from weightdiff.verify.verdict import Effect, Transcript, Trial, Verdict

__all__ = ["Claim", "Effect", "Transcript", "Trial", "Verdict", "read_claim", "read_claims", "verify"]
