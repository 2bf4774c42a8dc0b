"""From HIP source to a loaded kernel: specialise, compile with hiprtc, keep on disk."""
