"""Which libraries hip-python opens: ROCm's, or ours over other hardware."""
