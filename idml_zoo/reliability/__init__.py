"""How far an answer is believed: a probability from features of its neighbourhood, and limits on the risk. No torch."""
