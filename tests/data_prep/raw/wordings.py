"""The wordings in which the published question files ask."""

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
CAPTION = "What is happening in the image?\nGenerate a brief caption for the image."
