"""An exit with a guarantee, made offline: what `sgl calibrate` measures, fits, certifies and checks.

records   what one question showed: score, answers of both models, costs     (collection.py makes them)
fitting   one half of the records -> calibrated probability                  (scikit-learn, stored as numbers)
certify   the other half -> the loosest threshold whose risk is bounded      (Learn-then-Test)
build     all of it as one file, which ``sgl_engine.exit`` puts to work
drift     the same file against new data
page      tells people: outcomes.py counts, figures.py draws
"""
