"""What theory predicts, beside what is simulated: nothing here knows of the dynamics' code."""
