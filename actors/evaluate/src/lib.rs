//! The evaluator role: perplexity, diversity, samples and a report.
