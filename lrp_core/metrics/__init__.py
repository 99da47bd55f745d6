"""What is measured of a network: its accuracies (:mod:`.accuracy`) and its cost (:mod:`.cost`)."""
