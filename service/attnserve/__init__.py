"""attnserve: attention-augmented image classifiers, served with the evidence for each answer."""
