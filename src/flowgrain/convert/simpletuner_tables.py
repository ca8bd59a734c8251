"""SimpleTuner's options that need no counterpart here, and those that have none, with what to do instead."""

_CACHE = "caches are keyed by content: set data.cache to a folder to keep them"
_LOADING = "a matter of SimpleTuner's loading"
_ENCODERS = "the encoders of the model folder are used as they are"
_UPLOAD = "nothing is uploaded: copy the run folder's adapter by hand"
_KEPT = "files of the user are never deleted; unreadable pictures go to the quarantine list"
_RESUME = "every checkpoint can be resumed: run the same command with --resume"
_OTHER = "an option of another model family or method"
_DRAWN = "previews are drawn by the model's own pipeline"
_DISPLAY = "a matter of display"

NOT_NEEDED: dict[str, str] = {
    **dict.fromkeys(
        ("cache_dir", "cache_dir_text", "cache_dir_vae", "compress_disk_cache", "vae_cache_scan_behaviour"), _CACHE
    ),
    **dict.fromkeys(
        (
            "preserve_data_backend_cache",
            "override_dataset_config",
            "skip_file_discovery",
            "cache_clear_validation_prompts",
        ),
        _CACHE,
    ),
    **dict.fromkeys(
        ("vae_batch_size", "vae_enable_tiling", "vae_enable_slicing", "vae_cache_ondemand", "vae_cache_disable"),
        _LOADING,
    ),
    **dict.fromkeys(
        ("write_batch_size", "read_batch_size", "image_processing_batch_size", "max_workers", "torch_num_threads"),
        _LOADING,
    ),
    **dict.fromkeys(
        ("dataloader_prefetch", "dataloader_prefetch_qlen", "aspect_bucket_worker_count", "enable_multiprocessing"),
        _LOADING,
    ),
    **dict.fromkeys(
        ("metadata_update_interval", "text_encoder_batch_size", "aws_max_pool_connections", "keep_vae_loaded"), _LOADING
    ),
    **dict.fromkeys(
        ("offload_during_startup", "offload_during_save", "fully_unload_text_encoder", "quantize_via"), _LOADING
    ),
    **dict.fromkeys(
        ("delete_unwanted_images", "delete_problematic_images", "delete_nsfw_images", "ignore_missing_files"), _KEPT
    ),
    **dict.fromkeys(("resume_from_checkpoint", "checkpointing_use_tempdir"), _RESUME),
    **dict.fromkeys(("logging_dir", "tracker_image_layout", "print_filenames", "print_sampler_statistics"), _DISPLAY),
    **dict.fromkeys(
        ("debug_aspect_buckets", "debug_dataset_loader", "webhook_reporting_interval", "enable_watermark"), _DISPLAY
    ),
    **dict.fromkeys(("model_card_private", "model_card_safe_for_work", "model_card_note", "hub_model_id"), _UPLOAD),
    **dict.fromkeys(("validation_torch_compile", "validation_torch_compile_mode", "validation_seed_source"), _DRAWN),
    **dict.fromkeys(
        ("validation_guidance_rescale", "validation_negative_prompt", "validation_disable_unconditional"), _DRAWN
    ),
    **dict.fromkeys(("validation_noise_scheduler", "validation_no_cfg_until_timestep", "ema_validation"), _DRAWN),
    **dict.fromkeys(
        ("disable_benchmark", "attention_mechanism", "sageattention_usage", "fuse_qkv_projections"),
        "torch's attention is used",
    ),
    **dict.fromkeys(("ema_device", "ema_cpu_only", "ema_foreach_disable"), "the moving average of an adapter is small"),
    **dict.fromkeys(("set_grads_to_none", "gradient_precision", "disable_tf32"), "gradients are float32"),
    **dict.fromkeys(
        ("disable_bucket_pruning", "allow_dataset_oversubscription"), "no bucket and no picture is dropped"
    ),
    **dict.fromkeys(("aspect_bucket_disable_rebuild", "aspect_bucket_rounding"), "buckets are kohya's list"),
    **dict.fromkeys(("noise_offset", "noise_offset_probability"), "read with offset_noise alone"),
    **dict.fromkeys(("flux_guidance_min", "flux_guidance_max"), "read with flux_guidance_mode random-range alone"),
    **dict.fromkeys(("flow_beta_schedule_alpha", "flow_beta_schedule_beta"), "read with flow_use_beta_schedule alone"),
    **dict.fromkeys(
        ("huber_c", "huber_schedule", "soft_min_snr_sigma_data", "snr_weight"), "read with another loss alone"
    ),
    **dict.fromkeys(
        ("disable_segmented_timestep_sampling", "prediction_type", "seed_for_each_device"),
        "noise is drawn for each picture by itself",
    ),
    **dict.fromkeys(
        ("vae_dtype", "text_encoder_limit", "eval_timesteps", "num_eval_images", "eval_dataset_pooling"), _OTHER
    ),
    **dict.fromkeys(("i_know_what_i_am_doing", "local_rank", "variant", "model_flavour_comment"), _OTHER),
    **dict.fromkeys(("lycoris_config", "validation_lycoris_strength", "init_lokr_norm"), "read for LyCORIS alone"),
    **dict.fromkeys(("optimizer_release_gradients", "optimizer_offload_gradients", "fuse_optimizer"), _LOADING),
    **dict.fromkeys(
        ("minimum_image_size", "maximum_image_size", "target_downsample_size"), "the data sets have their own"
    ),
    "lr_end": "read with polynomial alone; schedule.final is a share of the rate",
    "optimizer_cpu_offload_method": _LOADING,
    "dynamo_mode": "torch.compile's default mode is used",
    "data_backend_sampling": "every picture is shown as often as its repeats say, each epoch",
    "aspect_bucket_alignment": "buckets come in steps of 64 px",
    "ignore_final_epochs": "the budget alone ends a run",
}

_NOISE = "inputs are not perturbed: do without"
_WEIGHT = "the loss of flow matching is not weighted by t: do without"
_MEMORY = "use memory.quantize, memory.gradient_checkpointing and memory.offload_encoders to save memory"
_TEXT = "text encoders are not trained"

UNSUPPORTED: dict[str, str] = {
    **dict.fromkeys(("input_perturbation", "input_perturbation_steps"), _NOISE),
    "offset_noise": "set noise.offset: every picture gets it, there a share of them (noise_offset_probability)",
    **dict.fromkeys(("snr_gamma", "use_soft_min_snr", "timestep_bias_strategy"), _WEIGHT),
    **dict.fromkeys(
        ("timestep_bias_begin", "timestep_bias_end", "timestep_bias_multiplier", "timestep_bias_portion"), _WEIGHT
    ),
    **dict.fromkeys(("enable_group_offload", "ramtorch", "group_offload_to_disk_path", "offload_param_path"), _MEMORY),
    **dict.fromkeys(("ramtorch_text_encoder", "ramtorch_vae", "unet_attention_slice", "quantize_activations"), _MEMORY),
    **dict.fromkeys(("group_offload_type", "group_offload_blocks_per_group", "group_offload_use_stream"), _MEMORY),
    **dict.fromkeys(("train_text_encoder", "text_encoder_lr", "save_text_encoder"), _TEXT),
    **dict.fromkeys(("push_to_hub", "push_checkpoints_to_hub", "push_to_hub_background", "publishing_config"), _UPLOAD),
    **dict.fromkeys(
        ("webhook_config", "post_checkpoint_script", "post_upload_script", "validation_external_script"),
        "no hooks: poll 'flowgrain status'",
    ),
    **dict.fromkeys(
        ("flux_fast_schedule", "flux_attention_masked_training", "t5_padding"), "FLUX's own pipeline is followed"
    ),
    **dict.fromkeys(
        ("distillation_method", "distillation_config", "tread_config", "crepa_enabled"), "the method is not there"
    ),
    **dict.fromkeys(
        ("scheduled_sampling_max_step_offset", "scheduled_sampling_probability"), "the method is not there"
    ),
    **dict.fromkeys(
        ("text_encoder_1_precision", "text_encoder_2_precision", "text_encoder_3_precision"),
        "use memory.offload_encoders",
    ),
    **dict.fromkeys(("pretrained_vae_model_name_or_path", "pretrained_t5_model_name_or_path"), _ENCODERS),
    **dict.fromkeys(
        ("pretrained_transformer_model_name_or_path", "pretrained_transformer_subfolder", "revision"),
        "give model.path a folder with it",
    ),
    **dict.fromkeys(
        ("evaluation_type", "validation_using_datasets", "validation_prompt_library"),
        "'flowgrain sample' and the metrics judge a checkpoint",
    ),
    **dict.fromkeys(
        ("validation_on_startup", "validation_randomize"), "previews use fixed seeds, from the first checkpoint on"
    ),
    **dict.fromkeys(
        ("validation_epoch_interval", "eval_epoch_interval", "checkpoint_epoch_interval"), "set the interval in updates"
    ),
    **dict.fromkeys(
        ("checkpoints_total_limit", "checkpoints_rolling_total_limit", "checkpointing_rolling_steps"),
        "kept checkpoints are those of budget.checkpoints",
    ),
    "validation_guidance_real": "classifier-free guidance is not applied to FLUX",
    "gradient_checkpointing_interval": "every block is checkpointed or none",
    "ema_update_interval": "the moving average follows every update: lower ema.decay to match",
    "masked_loss_probability": "masks always count: set data.mask",
    "tokenizer_max_length": "captions are cut at the model's own length",
    "singlora_ramp_up_steps": "lora and dora are the adapters there are",
    "peft_lora_mode": "lora and dora are the adapters there are",
    "slider_lora_target": "name the layers in adapter.targets",
    "max_grounding_entities": "no grounding",
    "prodigy_steps": "Prodigy adapts throughout",
    "eval_dataset_id": "the data set of type eval is validation.path",
    "max_upscale_threshold": "small pictures are scaled up to their bucket: move them away",
    "only_instance_prompt": "set it in the data sets",
    "prepend_instance_prompt": "set it in the data sets",
    "parquet_caption_column": "write the captions into .txt files",
    "num_validation_images": "name as many seeds in previews.seeds",
}

BACKEND_NOT_NEEDED: dict[str, str] = {
    **dict.fromkeys(
        ("cache_dir_vae", "cache_dir", "text_embeds", "image_embeds", "vae_cache_clear_each_epoch"), _CACHE
    ),
    **dict.fromkeys(
        ("skip_file_discovery", "preserve_data_backend_cache", "hash_filenames", "scan_for_errors"), _CACHE
    ),
    **dict.fromkeys(
        ("vae_cache_ondemand", "vae_cache_disable", "metadata_update_interval", "write_batch_size"), _LOADING
    ),
    **dict.fromkeys(
        ("maximum_image_size", "target_downsample_size"),
        "pictures are scaled to cover their bucket, whatever their size",
    ),
    **dict.fromkeys(("delete_unwanted_images", "delete_problematic_images", "delete_nsfw_images"), _KEPT),
    "disable_multiline_split": "a caption file is one caption",
    "prefer_captions_from_files": "caption files come first",
}

_FILTER = "no picture is left out by its shape or size: move them away"
_SCHEDULED = "every folder is used from start to end"

BACKEND_UNSUPPORTED: dict[str, str] = {
    **dict.fromkeys(
        ("minimum_image_size", "minimum_aspect_ratio", "maximum_aspect_ratio", "max_upscale_threshold"), _FILTER
    ),
    **dict.fromkeys(("start_step", "end_step", "end_epoch"), _SCHEDULED),
    **dict.fromkeys(
        ("conditioning", "conditioning_data", "grounding", "slider_strength", "video", "audio"),
        "the method is not there",
    ),
    **dict.fromkeys(
        ("parquet", "huggingface", "csv_file", "csv_caption_column", "caption_filter_list"),
        "write the captions into .txt files",
    ),
    "max_num_samples": "data.max_roots limits the pictures of all folders together",
    "crop_aspect_buckets": "write the shapes into the source's buckets",
}
