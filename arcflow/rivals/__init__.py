"""What the method is compared with: heads of other papers, and fine-tuning of all weights; a file each."""
