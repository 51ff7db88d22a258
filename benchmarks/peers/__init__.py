"""What a good engineer would write instead: plain PyTorch, numpy, scipy, faiss."""
