"""Gates: each looks at one side of a candidate and answers with a verdict."""
