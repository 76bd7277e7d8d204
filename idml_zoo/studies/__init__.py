"""Many runs: grids, fair comparisons, repetitions, and the pages made of them."""
