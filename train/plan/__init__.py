"""What a training or a drawing would need, before anything is bought or waited for."""
