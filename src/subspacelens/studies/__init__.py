"""The paper, study by study, made of the calls that users have."""
