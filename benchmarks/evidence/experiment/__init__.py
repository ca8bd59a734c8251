"""What the evidence scripts share: domains, cells of a design, a resumable pool, results, paired analysis."""
