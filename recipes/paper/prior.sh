# What predicts success rates (PRIOR, V0_MODEL) and how that is fused with the rollouts (FUSION, BASELINE), as described
# in settings.sh; sourced by the V0.5 scripts.
usual=$( (( demo )) && echo history || echo v0)
PRIOR=${PRIOR:-$usual}
prior=(algorithm.v05.prior.provider="$PRIOR")
if [[ $PRIOR == v0 ]] && (( demo )); then
  # Its context: a sample of the last 96 prompts, three steps of 32.
  prior+=(algorithm.v05.support.capacity=96 algorithm.v05.support.sample=64)
  V0_MODEL=${V0_MODEL:-}
elif [[ $PRIOR == v0 && -z ${V0_MODEL:-} ]]; then
  V0_MODEL=Now-Join-Us/Generalist-Value-Model-V0
  echo "V0_MODEL=$V0_MODEL: its TabPFN v2.5 head is for non-commercial use; PRIOR=history does without" >&2
fi
if [[ $PRIOR == v0 && -n $V0_MODEL ]]; then
  prior+=(+algorithm.v05.prior.kwargs.model="$(model "$V0_MODEL")")
fi
FUSION=${FUSION:-shrinkage} BASELINE=${BASELINE:-plain}
prior+=(algorithm.v05.fusion="$FUSION" algorithm.v05.baseline="$BASELINE")
suffix=$([[ $PRIOR == "$usual" ]] || echo "_$PRIOR")
[[ $FUSION == shrinkage ]] || suffix+=_$FUSION
[[ $BASELINE == plain ]] || suffix+=_$BASELINE
